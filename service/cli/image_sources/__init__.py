"""Where `mae embed` finds images: files, folders and patterns, packs, archives, and what fsspec can reach."""
