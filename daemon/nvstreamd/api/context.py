"""What is a call's context to our servicers? grpcio's, whatever the message types."""

from typing import Any, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
