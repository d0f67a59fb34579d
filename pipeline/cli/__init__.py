"""The command line `boxless`, a module a command group."""
