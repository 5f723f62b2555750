"""Time, memory and energy: measured on this machine, counted from the configuration, predicted for other hardware."""
