/* The steady temperature of a square plate by red-black over-relaxation, its rows shared out among MPI ranks.
 *
 *     mpirun -np 8 heat heat.in           reads "omega 1.95" and "size 127" (unknowns along a side), writes heat.json
 *
 * One edge of the plate has temperature 1, the others 0. Each sweep updates the red points, then the black ones; before
 * each half sweep a rank exchanges its outer rows with its neighbours. It ends when the largest residual is RELATIVE of
 * the first. The number of sweeps depends on omega and the size alone, not on the ranks.
 */
#include <math.h>
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define RELATIVE 1e-8
#define MOST 20000

static int n, stride, first, rows, up, down;
static double *t; /* rows first..first+rows-1 of the plate, a row of the neighbours on each side */

#define AT(row, column) t[(size_t)((row) - first + 1) * stride + (column)]

static void exchange(void)
{
    MPI_Sendrecv(&AT(first, 0), stride, MPI_DOUBLE, up, 0, &AT(first + rows, 0), stride, MPI_DOUBLE, down, 0,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
    MPI_Sendrecv(&AT(first + rows - 1, 0), stride, MPI_DOUBLE, down, 1, &AT(first - 1, 0), stride, MPI_DOUBLE, up, 1,
                 MPI_COMM_WORLD, MPI_STATUS_IGNORE);
}

/* One sweep with this omega; returns the largest residual that it met. */
static double sweep(double omega)
{
    double worst = 0, all;
    for (int colour = 0; colour < 2; colour++) {
        exchange();
        for (int row = first; row < first + rows; row++)
            for (int column = 1 + (row + colour) % 2; column <= n; column += 2) {
                double residual =
                    (AT(row - 1, column) + AT(row + 1, column) + AT(row, column - 1) + AT(row, column + 1)) / 4 -
                    AT(row, column);
                AT(row, column) += omega * residual;
                if (fabs(residual) > worst)
                    worst = fabs(residual);
            }
    }
    MPI_Allreduce(&worst, &all, 1, MPI_DOUBLE, MPI_MAX, MPI_COMM_WORLD);
    return all;
}

/* How many nodes the ranks run on: as many as there are ranks that Open MPI calls the first on theirs. */
static int nodes_of_ranks(void)
{
    const char *here = getenv("OMPI_COMM_WORLD_LOCAL_RANK");
    int first_here = here && strcmp(here, "0") == 0, nodes;
    MPI_Reduce(&first_here, &nodes, 1, MPI_INT, MPI_SUM, 0, MPI_COMM_WORLD);
    return nodes;
}

/* Rank 0 reads the input and tells the others; returns omega, 0 where the input is wrong, and sets n. */
static double read_input(int rank, const char *path)
{
    double omega = 0;
    if (rank == 0) {
        FILE *in = fopen(path, "r");
        if (!in || fscanf(in, "omega %lf size %d", &omega, &n) != 2)
            omega = 0;
        if (in)
            fclose(in);
    }
    MPI_Bcast(&omega, 1, MPI_DOUBLE, 0, MPI_COMM_WORLD);
    MPI_Bcast(&n, 1, MPI_INT, 0, MPI_COMM_WORLD);
    return omega;
}

int main(int argc, char **argv)
{
    int rank, ranks, sweeps = 0;
    MPI_Init(&argc, &argv);
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    MPI_Comm_size(MPI_COMM_WORLD, &ranks);
    double omega = read_input(rank, argc == 2 ? argv[1] : "heat.in");
    if (!(omega > 0 && omega < 2) || n < ranks || n % 2 == 0) {
        if (rank == 0)
            fprintf(stderr,
                    "heat.in is to say \"omega W\" and \"size N\", with 0 < W < 2 and an odd N of at least as many as the "
                    "%d ranks\n",
                    ranks);
        MPI_Finalize();
        return 2;
    }
    first = 1 + (int)((long)n * rank / ranks);
    rows = 1 + (int)((long)n * (rank + 1) / ranks) - first;
    up = rank > 0 ? rank - 1 : MPI_PROC_NULL;
    down = rank < ranks - 1 ? rank + 1 : MPI_PROC_NULL;
    stride = n + 2;
    t = calloc((size_t)(rows + 2) * stride, sizeof *t);
    if (!t)
        MPI_Abort(MPI_COMM_WORLD, 3);
    if (rank == 0)
        for (int column = 1; column <= n; column++)
            AT(0, column) = 1;

    double started = MPI_Wtime(), residual = 1, begun = 0;
    while (sweeps < MOST && residual > RELATIVE * begun) {
        residual = sweep(omega);
        begun = sweeps++ == 0 ? residual : begun;
    }
    double seconds = MPI_Wtime() - started, mine = 0, centre;
    int middle = (n + 1) / 2;
    if (middle >= first && middle < first + rows)
        mine = AT(middle, middle);
    MPI_Reduce(&mine, &centre, 1, MPI_DOUBLE, MPI_SUM, 0, MPI_COMM_WORLD);
    int nodes = nodes_of_ranks();
    if (rank == 0) {
        FILE *out = fopen("heat.json", "w");
        if (!out)
            MPI_Abort(MPI_COMM_WORLD, 3);
        fprintf(out,
                "{\"sweeps\": %d, \"centre\": %.9f, \"theory_omega\": %.6f, \"ranks\": %d, \"nodes\": %d, "
                "\"seconds\": %.4f}\n",
                sweeps, centre, 2 / (1 + sin(acos(-1) / (n + 1))), ranks, nodes, seconds);
        fclose(out);
        printf("omega %.5f: %d sweeps, %.9f in the middle, %d ranks on %d nodes, %.3f s\n", omega, sweeps, centre,
               ranks, nodes, seconds);
    }
    free(t);
    MPI_Finalize();
    return sweeps < MOST ? 0 : 1;
}
