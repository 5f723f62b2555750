"""The trace of a run: what it holds, how a prompt is read into one, and numbers worked out from one."""
