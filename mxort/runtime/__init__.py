"""Running converted models: devices, sessions, and checks of this machine."""
