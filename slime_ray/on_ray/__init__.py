"""All that runs on Ray: the sweep, its search and early stopping, the cluster. Nothing else imports ray or optuna."""
