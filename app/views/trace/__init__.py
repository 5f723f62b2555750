"""What several pages show of a trace: its tokens, levels and costs, and two traces side by side."""
