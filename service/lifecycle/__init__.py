"""The life of the service: it loads an engine, serves, drains and ends."""
