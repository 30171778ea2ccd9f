"""An Optuna study of trials that run elsewhere."""
