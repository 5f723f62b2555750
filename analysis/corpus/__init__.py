"""What a checkpoint drops over many documents: per-token tables in shards, and what is measured of them."""
