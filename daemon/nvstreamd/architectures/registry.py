"""Which family is behind a file's general.architecture?"""

from nvstreamd.architectures.llama import LLAMA
from nvstreamd.architectures.mistral import MISTRAL
from nvstreamd.architectures.qwen2 import QWEN2
from nvstreamd.architectures.qwen3 import QWEN3

FAMILIES = {family.name: family for family in (LLAMA, MISTRAL, QWEN2, QWEN3)}
