"""What runs on the board: the agent, its backends, and the client that talks to it."""
