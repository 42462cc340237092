"""Where does a client's call arrive? The gRPC edge: identity, permission, calls to the supervisor, errors back."""

import os

# We fork only to start engines, as another user. gRPC (1.81 to 1.85 at least) would begin threads of its own in the
# child before it becomes the engine, and they crash it: https://github.com/grpc/grpc/issues/43055
os.environ["GRPC_ENABLE_FORK_SUPPORT"] = "0"
