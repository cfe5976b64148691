"""The parts of `mae bench` but the engine: stages alone, front end alone, service under load, and the limit."""
