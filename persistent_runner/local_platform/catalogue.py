"""What the local platform offers: core types with prices, software tiles, the user and the projects.

Codes, shapes and units are those of the real catalogue (USD per core and hour, MB and GB per core); the numbers are
plausible, not current.
"""

from __future__ import annotations

from typing import Any

OWNER = "local@localhost"
MAX_JOB_HOURS = 168
USER = {"email": OWNER, "fullName": "Local User", "username": "local", "maxJobHours": MAX_JOB_HOURS}
PROJECTS = [{"id": "LocalA", "name": "Research"}, {"id": "LocalB", "name": "Production"}]

_Machine = tuple[str, list[int], float, float, str, list[str]]
_MACHINES: tuple[_Machine, ...] = (
    ("emerald", [1, 2, 4, 8, 18, 36], 0.1751, 0.0988, "Intel Xeon Platinum (Skylake)", ["general"]),
    ("emerald_max", [4, 8, 16, 24, 48], 0.1820, 0.0911, "Intel Xeon Platinum (Cascade Lake)", ["general", "network"]),
    ("granite", [2, 4, 8, 16, 32, 64], 0.0923, 0.0412, "AMD EPYC (Rome)", ["general"]),
    ("onyx", [1, 2, 4, 8, 16], 0.1402, 0.0620, "Intel Xeon E5 (Haswell)", ["general"]),
    ("marble", [1, 2, 4], 0.0801, 0.0390, "Intel Xeon E5 (Ivy Bridge)", ["general"]),
    ("hematite", [1, 2, 4, 8, 16, 32], 0.1150, 0.0575, "AMD EPYC (Naples)", ["general", "memory"]),
    ("natrolite", [2, 4, 8, 16], 0.2100, 0.1010, "Intel Xeon E7 (Broadwell)", ["memory"]),
    ("carbon", [60, 120], 0.0610, 0.0310, "AMD EPYC (Milan-X)", ["network"]),
    ("calcite", [30, 60, 120], 0.0655, 0.0330, "AMD EPYC (Genoa-X)", ["network"]),
    ("amber", [4, 8, 16, 32], 0.1330, 0.0640, "AMD EPYC (Milan)", ["general"]),
    ("solanite", [8, 16, 24, 48], 0.1555, 0.0733, "Intel Xeon (Sapphire Rapids)", ["general"]),
    ("iron", [2, 4, 8], 0.1011, 0.0498, "Ampere Altra", ["general"]),
)


def _core_type(order: int, machine: _Machine) -> dict[str, Any]:
    code, cores, price, economy, processor, categories = machine
    return {
        "code": code,
        "name": code.replace("_", " ").title(),
        "cores": cores,
        "memory": 4000,
        "storage": 40,
        "price": price,
        "lowPriorityPrice": f"{economy:.4f}",
        "walltimeRequired": False,
        "isDeprecated": False,
        "isPrimary": order == 0,
        "isActive": True,
        "remoteVizAllowed": False,
        "hasSsd": True,
        "compute": "3.00",
        "io": "Standard",
        "storageIo": "Standard",
        "processorInfo": processor,
        "description": f"{processor}, emulated on this machine",
        "displayOrder": order,
        "categoryCodes": categories,
        "gpuCounts": [0.0] * len(cores),
    }


CORE_TYPES: list[dict[str, Any]] = [_core_type(order, machine) for order, machine in enumerate(_MACHINES)]

COMPUTE_PRICES: list[dict[str, Any]] = [
    {
        "coreType": code,
        "planType": plan,
        "os": "linux",
        "isActive": True,
        "value": {"amount": f"{amount:.4f}", "currency": "USD"},
    }
    for code, _, price, economy, _, _ in _MACHINES
    for plan, amount in (("on-demand-priority", price), ("on-demand", economy))
]


def _analysis(code: str, name: str, vendor: str, versions: list[tuple[str, str]]) -> dict[str, Any]:
    return {
        "code": code,
        "name": name,
        "description": f"<p>{name}</p>",
        "vendorName": vendor,
        "pricing": None,
        "industries": [],
        "supportDesks": [],
        "hasRescaleLicense": False,
        "hasShortTermLicense": False,
        "licenseSettings": [],
        "optimizerType": None,
        "thumbnail": "",
        "resources": [],
        "displayOrder": None,
        "versions": [
            {
                "id": f"{code}-{version_code}",
                "version": version,
                "versionCode": version_code,
                "allowedCoreTypes": [machine[0] for machine in _MACHINES],
                "eula": None,
                "stdCommand": "",
                "mpiCommand": "",
                "smpCommand": "",
            }
            for version_code, version in versions
        ],
    }


ANALYSES: list[dict[str, Any]] = [
    _analysis("user_included", "Bring Your Own Software", "Rescale", [("0", "CPU")]),
    _analysis("user_included_mpi", "Bring Your Own Software (MPI)", "Rescale", [("0", "CPU")]),
    _analysis("ansys_fluent", "Ansys Fluent", "Ansys", [("2019r1", "2019 R1"), ("2023r1", "2023 R1")]),
    _analysis("openfoam_plus", "OpenFOAM", "OpenCFD", [("v1912+", "v1912+"), ("v2212+", "v2212+")]),
    _analysis("calculix", "CalculiX", "CalculiX", [("2.20", "2.20")]),
]


def core_type(code: str) -> dict[str, Any] | None:
    """Return the core type with this code, None if it is not offered."""
    return next((found for found in CORE_TYPES if found["code"] == code), None)


def analysis(code: str) -> dict[str, Any] | None:
    """Return the software tile with this code, None if there is none."""
    return next((found for found in ANALYSES if found["code"] == code), None)
