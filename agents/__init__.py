"""What runs on the board: the agent, its backends, and the client that talks to it."""

import os

# Older Pythons copy the process (fork) to start another, and gRPC's threads do not outlive that in
# good order; the copy uses no gRPC. gRPC reads this when it is imported, and never again.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
