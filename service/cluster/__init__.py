"""The service and its engines on a Ray cluster: replicas of Ray Serve, and collections by Ray Data."""
