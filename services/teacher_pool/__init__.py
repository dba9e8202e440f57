"""The teacher pool: replicas on Ray Serve, the client that feeds them, and the control that deploys them."""
