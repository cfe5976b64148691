"""The commands of `mae`, one file each."""
