"""Where the time of the whole service goes: its stages alone, its front end, all of it under load, and the limit."""
