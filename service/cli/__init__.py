"""The command line, `mae`."""
