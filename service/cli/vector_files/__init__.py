"""The output files of `mae embed`: their formats, and the journal and store of a run."""
