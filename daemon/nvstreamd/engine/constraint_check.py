"""Does a JSON schema compile within limits? Run as a process of its own, which the kernel ends when it oversteps.

llguidance counts the work of most steps, but not that of intersecting patterns (`allOf`): twenty of them take minutes
in a call that nothing can interrupt. So a schema that has not been seen before is compiled here first.

Usage: constraint_check.py DIRECTORY-OF-LLGUIDANCE CPU-SECONDS MEMORY-BYTES; schema on stdin, its problem on stdout.
"""

from __future__ import annotations

import resource
import sys


def main() -> int:
    """Status 0 and nothing on stdout when the schema compiles, 1 and the problem when it does not."""
    directory, seconds, memory = sys.argv[1:]
    for kind, most in ((resource.RLIMIT_CPU, int(seconds)), (resource.RLIMIT_AS, int(memory)),
                       (resource.RLIMIT_CORE, 0)):
        hard = resource.getrlimit(kind)[1]
        least = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (least, least))
    sys.path.insert(0, directory)
    import llguidance

    schema = sys.stdin.buffer.read().decode()
    try:
        problem = llguidance.LLMatcher.validate_grammar(llguidance.LLMatcher.grammar_from_json_schema(schema))
    except ValueError as error:
        problem = str(error)
    # A warning is no problem: the grammar works.
    if not problem or problem.startswith("WARNING"):
        return 0
    sys.stdout.write(problem[:500])
    return 1


if __name__ == "__main__":
    sys.exit(main())
