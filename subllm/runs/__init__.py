"""A training run's folder, its log and snapshots, and the Trainer that writes them."""
