"""The folder of a run, its log and snapshots, and the Trainer that writes them."""
