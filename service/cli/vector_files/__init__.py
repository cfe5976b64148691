"""The output files of `mae embed`: formats, journal and store."""
