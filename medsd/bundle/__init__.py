"""The bundle: its layout, its export, its parity check, its card."""
