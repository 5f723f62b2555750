"""Text for training and conversion: where it comes from, and how it becomes blocks of token ids."""
