"""HTTP: the app, its middleware, bodies, responses and routes."""
