"""Thin programs that wire medsd to people and to other systems."""
