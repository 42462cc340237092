"""Can anybody do what only administrators may, or is a method forgotten in the table?"""

from __future__ import annotations

import os

import pytest

from nvstream.v1 import inference_pb2, models_pb2, status_pb2
from nvstreamd.api.peer import Peer, of_call, upstream_name
from nvstreamd.api.permissions import TABLE, Permissions
from nvstreamd.errors import PermissionDenied

STRANGER = 65534


def test_the_table_names_every_method_and_no_other() -> None:
    methods = {
        f"{service.full_name}/{method.name}"
        for file in (inference_pb2, models_pb2, status_pb2)
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert set(TABLE) == methods


@pytest.mark.parametrize("method", ["Import", "Load", "Unload"])
def test_strangers_do_not_administer(method: str) -> None:
    permissions = Permissions(admin_group=None)
    name = f"nvstream.v1.Models/{method}"
    with pytest.raises(PermissionDenied, match=f"uid {STRANGER}"):
        permissions.check(name, Peer(STRANGER, STRANGER))
    permissions.check(name, Peer(0, 0))
    permissions.check(name, Peer(os.getuid(), 100))


def test_a_group_administers_when_it_is_named() -> None:
    """Group 0's members by primary group: the kernel's word is the gid of the connection."""
    member, other = Peer(0, 0), Peer(STRANGER, STRANGER)
    assert member.in_group("root") and not other.in_group("root")
    assert not other.in_group("there-is-no-such-group")
    with pytest.raises(PermissionDenied, match="member of group root"):
        Permissions(admin_group="root").check("nvstream.v1.Models/Load", other)


def test_what_is_not_in_the_table_is_refused() -> None:
    with pytest.raises(PermissionDenied):
        Permissions(None).check("nvstream.v1.Models/Delete", Peer(0, 0))


def test_the_name_carries_the_identity() -> None:
    peer = Peer(4294967294, 4294967294)
    assert of_call(f"unix:/tmp/nvstreamd-abc/{upstream_name(peer, 12)}") == peer
    contained = Peer(100_005, 100_005, 1000)
    assert of_call(f"unix:/tmp/x/{upstream_name(contained, 3)}") == contained and contained.share == 1000
    assert of_call(f"unix:%2Ftmp%2Fx/{upstream_name(Peer(0, 5), 1)}") == Peer(0, 5)


NAMELESS = ["", "unix:", "ipv4:127.0.0.1:80", "unix:/x/u-1-g0-1.peer", "unix:/x/u0-g0-1.peer/y",
            "unix:/x/u0-g0-s-1.peer"]


@pytest.mark.parametrize("claimed", NAMELESS)
def test_a_peer_that_the_front_did_not_name_is_nobody(claimed: str) -> None:
    with pytest.raises(PermissionDenied):
        of_call(claimed)
