"""Decides where virtual time may jump, and gives exactly what stepping gives."""
