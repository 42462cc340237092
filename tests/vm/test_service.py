"""Does the packaged service do what it promises on a Debian with systemd? One boot, from installation to purge."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest

from nvstreamd.message_ids import MODEL_STATE
from support.random_gguf import Options, write
from support.shapes import tiny
from vm import lab, service_guest
from vm.lab import MIB, ROOT, Drive, Hardware, image
from vm.service_card import MODULE, STEP
from vm.service_guest import BEFORE, Course

SECONDS = 900.0
SPARE, USED = "0000:00:10.0", "0000:00:11.0"
# Exit statuses of `nvstream`.
DENIED, PRECONDITION = 5, 7
TOKENS, MORE_TOKENS = 12, 40
# Streams: the budget has no room for all layers.
BUDGET = "3MiB"
# Every step may use these.
WORDS = """
as_alice() { runuser -u alice -- nvstream "$@"; }
as_bob() { runuser -u bob -- nvstream models "$@"; }
ask() { as_alice generate $1 "the cat" --json --ignore-eos --seed 7 --temperature 0.9 -n $2; }
driver() { basename "$(readlink /sys/bus/pci/devices/$1/driver)"; }
disk() { udevadm settle; basename /sys/bus/pci/devices/$1/nvme/nvme*/nvme*n1; }
"""
CONFIG = """
memory = "64MiB"
model_directories = ["/srv/models"]
[[drives]]
serial = "LAB0"
[[drives]]
serial = "LAB1"
"""
CONFIGURED_MODEL = f"""
[[models]]
name = "packed"
path = "/var/lib/nvstreamd/models/packed.nvs"
budget = "{BUDGET}"
"""
# Each finds the machine as those before it have left it.
STEPS = {
    "boot": "systemctl is-system-running --wait; systemctl is-active nvstreamd.service nvstreamd.socket",
    "module": """dkms status -m nvstream -k "$(uname -r)"; modprobe nvstream; ls -d /sys/bus/pci/drivers/nvstream
        modinfo -F filename nvstream; modprobe -r nvstream""",
    "configure": f"""
        useradd --create-home alice; useradd --create-home --groups nvstream-admin bob
        mkdir /srv/models /srv/data; cp /lab/plain.gguf /srv/models
        cat >> /etc/nvstreamd/nvstreamd.toml <<'END'{CONFIG}END
        systemctl stop nvstreamd.service""",
    "activate": "as_alice models --json; systemctl is-active nvstreamd.service",
    "forbidden": "as_alice models load plain",
    "file": f"as_bob load plain --budget {BUDGET}; ask plain {TOKENS}",
    "log": """journalctl --unit nvstreamd.service --output json \\
        --output-fields=MESSAGE,PRIORITY,NVSTREAM_MODEL,MESSAGE_ID""",
    "schema": """as_alice generate plain "the cat" --json --json-schema '{"type": "integer"}'
        as_alice chat plain "the cat" --json -n 2""",
    "engine": """for process in $(cat /sys/fs/cgroup/system.slice/nvstreamd.service/cgroup.procs); do
        if grep -q 'nvstreamd\\.engine' /proc/$process/cmdline; then cat /proc/$process/status /proc/$process/limits; fi
        done""",
    "file_system": "as_bob import /srv/models/plain.gguf --name packed --device LAB1",
    "mounted": f"""mount /dev/$(disk {USED}) /srv/data
        as_bob import /srv/models/plain.gguf --name packed --device LAB1""",
    "import": f"""as_bob unload plain; as_bob import /srv/models/plain.gguf --name packed --device LAB0
        sha256sum < /dev/$(disk {SPARE}) > /root/content
        cat >> /etc/nvstreamd/nvstreamd.toml <<'END'{CONFIGURED_MODEL}END
        systemctl stop nvstreamd.service""",
    "named": f"""until lsblk --noheadings --output FSTYPE,UUID /dev/$(disk {SPARE}) | grep nvstreamd; do :; done
        udevadm info --query property --property UDISKS_IGNORE --value /dev/$(disk {SPARE})""",
    "missing": f"""echo 1 > /sys/bus/pci/devices/{SPARE}/remove; systemctl start nvstreamd.service
        ask packed {TOKENS}; as_alice models get packed --json""",
    "drive": f"""echo 1 > /sys/bus/pci/rescan
        grep -q -m 1 "the drives that it lacked are there" <(journalctl --follow --lines all --unit nvstreamd.service)
        ask packed {TOKENS}; as_alice models get packed --json""",
    "taken": f"driver {SPARE}; driver {USED}",
    "kill": f"systemctl kill --signal KILL nvstreamd.service; ask packed {TOKENS}; driver {SPARE}",
    "drain": f"""ask packed {MORE_TOKENS} > /root/stream & stream=$!
        grep -q -m 1 delta <(tail -F --lines +1 --pid $stream /root/stream) || echo "it ended without a token"
        systemctl stop nvstreamd.socket nvstreamd.service; wait $stream; cat /root/stream""",
    "returned": f"""driver {SPARE}; sha256sum < /dev/$(disk {SPARE}) | cmp - /root/content; cat /srv/data/file
        systemctl show --property Result --value nvstreamd.service; cd /var/lib/nvstreamd; ls models claims""",
    "mountable": f"mkfs.ext4 -q -F /dev/$(disk {SPARE}); mount /dev/$(disk {SPARE}) /mnt; df --output=source /mnt",
    "card": STEP,
    "security": "systemd-analyze security nvstreamd.service",
    "purge": f"""umount /mnt /srv/data; userdel --remove alice; userdel --remove bob; rm -r /srv/* /root/stream
        rm /root/content; systemctl start nvstreamd.service; dpkg --purge nvstreamd >&2; echo driver: $(driver {SPARE})
        echo units: $(systemctl list-unit-files --no-legend 'nvst*'; systemctl list-units --all --no-legend 'nvst*')
        echo accounts: $(grep nvst /etc/passwd /etc/group /etc/shadow /etc/gshadow)
        echo modules: $(dkms status; modinfo -F filename nvstream 2>&- || :)""",
    "after": "find / -xdev",
}
# What a Debian writes by itself while it runs, and what the guest's job makes it write; DKMS keeps the machine's key.
ITS_OWN = ("/dev/", "/lab/", "/proc/", "/run/", "/sys/", "/tmp/", "/var/cache/", "/var/log/", "/var/tmp/",
           "/etc/subgid-", "/etc/subuid-", "/lost+found", "/var/lib/dbus/machine-id", "/var/lib/dkms/mok.",
           "/var/lib/systemd/")


@pytest.fixture(scope="module")
def course(tmp_path_factory: pytest.TempPathFactory) -> Course:
    """The one boot. Skips, loudly, where there can be none."""
    reason = lab.missing() or service_guest.missing()
    if reason:
        pytest.skip(f"NOT TESTED: the service, on a machine with systemd: {reason}")
    folder = tmp_path_factory.mktemp("service")
    write(folder / "plain.gguf", tiny(width=256, layers=6), Options())
    spare = Drive("LAB0", image(folder / "spare", 64 * MIB), 0x10)
    used = Drive("LAB1", image(folder / "used", 64 * MIB), 0x11)
    if MODULE.exists():
        shutil.copyfile(MODULE, folder / MODULE.name)
    (folder / "data").mkdir()
    (folder / "data/file").write_text("somebody's\n")
    subprocess.run(["/sbin/mke2fs", "-q", "-t", "ext4", "-d", str(folder / "data"), str(used.image)], check=True)
    steps = {name: f"{WORDS}\n{script}" for name, script in STEPS.items()}
    return service_guest.boot(folder, Hardware((spare, used)), steps, SECONDS)


def events(text: str, kind: str) -> Iterator[dict[str, Any]]:
    """The lines of one kind that `nvstream --json` wrote."""
    for line in text.splitlines():
        if line.startswith("{") and (event := json.loads(line))["event"] == kind:
            yield event


def tokens(text: str) -> list[int]:
    """What was generated; a generation that did not end fails the test."""
    assert list(events(text, "finished")), text
    return [token for event in events(text, "delta") for token in event["token_ids"]]


@pytest.mark.vm
def test_it_starts_with_the_machine_and_nothing_fails(course: Course) -> None:
    assert course.output("boot").split() == ["running", "active", "active"]


@pytest.mark.vm
def test_the_kernel_module_was_built_when_it_was_installed_and_loads(course: Course) -> None:
    status, driver, file = course.output("module").splitlines()
    assert status.startswith("nvstream/") and status.endswith(": installed"), status
    assert driver == "/sys/bus/pci/drivers/nvstream" and "/updates/dkms/nvstream.ko" in file


@pytest.mark.vm
def test_the_first_client_starts_it_and_is_answered(course: Course) -> None:
    course.output("configure")
    found = course.output("activate")
    assert [event["name"] for event in events(found, "model")] == ["plain"]
    assert found.splitlines()[-1] == "active"


@pytest.mark.vm
def test_who_is_no_administrator_loads_nothing(course: Course) -> None:
    assert course.step("forbidden").status == DENIED, course.step("forbidden").output


@pytest.mark.vm
def test_an_unprivileged_user_gets_tokens_a_schema_and_a_chat(course: Course) -> None:
    assert len(tokens(course.output("file"))) == TOKENS
    # Both start small processes under limits of their own, which the hardening must let them have.
    assert tokens(course.output("schema"))


@pytest.mark.vm
def test_the_journal_tells_models_and_events_apart(course: Course) -> None:
    entries = [json.loads(line) for line in course.output("log").splitlines()]
    assert any("through systemd-python" in entry["MESSAGE"] for entry in entries), entries
    of_the_model = [entry for entry in entries if entry.get("NVSTREAM_MODEL") == "plain"]
    assert any(entry["MESSAGE"].endswith("MODEL_STATE_SERVING") and entry.get("MESSAGE_ID") == MODEL_STATE["message_id"]
               for entry in of_the_model), entries
    # An engine has no socket: its lines come through stderr, and their priority is no part of them.
    of_the_engine = [entry for entry in entries if "plain: INFO" in entry["MESSAGE"]]
    assert of_the_engine and all(entry["PRIORITY"] == "6" for entry in of_the_engine), entries
    assert not any(entry["MESSAGE"].startswith("<") for entry in entries)


@pytest.mark.vm
def test_the_engine_has_no_privilege_and_may_pin_its_memory(course: Course) -> None:
    found = course.output("engine")
    assert "CapEff:\t0000000000000000" in found and "Uid:\t0" not in found and "NoNewPrivs:\t1" in found, found
    assert re.search(r"Uid:\t700\d\d\t", found), f"its uid is none of engine_uids:\n{found}"
    assert re.search(r"Max locked memory +unlimited +unlimited", found), found


@pytest.mark.vm
def test_a_drive_with_somebodys_files_is_refused(course: Course) -> None:
    course.output("import")
    for step, reason in {"file_system": "ext4", "mounted": "mounted at /srv/data"}.items():
        assert course.step(step).status == PRECONDITION and reason in course.step(step).output
    assert course.output("taken").split()[1] == "nvme"


@pytest.mark.vm
def test_others_see_that_the_drive_is_not_empty(course: Course) -> None:
    kind, uuid, ignored = course.output("named").split()
    assert (kind, ignored) == ("nvstreamd", "1") and UUID(uuid)


@pytest.mark.vm
def test_a_model_whose_drive_is_not_there_is_served_from_its_file(course: Course) -> None:
    found = course.output("missing")
    (model,) = events(found, "model")
    assert "nvme_host given up: no NVMe drive has serial LAB0" in str(model["placement"]["notes"]), model
    assert tokens(found) == tokens(course.output("file"))


@pytest.mark.vm
def test_a_model_on_the_drive_gives_the_tokens_of_its_file(course: Course) -> None:
    found = course.output("drive")
    (model,) = events(found, "model")
    assert model["placement"]["backend"] == "nvme_host" and model["placement"]["streamed_bytes_per_pass"], model
    assert "a wall less" not in str(model["placement"]["notes"]), model
    assert course.output("taken").split()[0] == "vfio-pci"
    assert tokens(found) == tokens(course.output("file"))


@pytest.mark.vm
def test_a_killed_service_is_there_again_with_the_drive(course: Course) -> None:
    found = course.output("kill")
    assert tokens(found) == tokens(course.output("file"))
    assert found.splitlines()[-1] == "vfio-pci"


@pytest.mark.vm
def test_a_stop_lets_streams_end_and_gives_the_drive_back(course: Course) -> None:
    assert len(tokens(course.output("drain"))) == MORE_TOKENS
    driver, content, result, *kept = course.output("returned").split()
    assert (driver, content, result) == ("nvme", "somebody's", "success")
    assert "packed.nvs" in kept and not any(name.endswith(".claim") for name in kept)
    assert course.output("mountable").split()[-1].startswith("/dev/nvme")


@pytest.mark.vm
@pytest.mark.skipif(not MODULE.exists(), reason="NOT TESTED: a card's nodes in the service: no kernel headers")
def test_a_cards_nodes_are_made_and_can_be_opened_in_the_service_alone(course: Course) -> None:
    assert course.output("card").splitlines() == [
        "nvidia0 opened", "nvidiactl opened", "nvidia-uvm opened", "vda EPERM", "policy 0"]


@pytest.mark.vm
def test_the_hardening_is_what_the_documentation_says(course: Course) -> None:
    score = re.search(r"exposure level for nvstreamd.service: ([0-9.]+)", course.output("security"))
    page = (ROOT / "docs/administrator.md").read_text()
    assert score and f"rates the service {score[1]}" in page, course.output("security")


@pytest.mark.vm
def test_no_trace_is_left_when_it_is_purged(course: Course) -> None:
    assert course.output("purge").splitlines()[-4:] == ["driver: nvme", "units:", "accounts:", "modules:"]
    before = set(BEFORE.read_text().splitlines())
    left = [path for path in course.output("after").splitlines() if path not in before and not path.startswith(ITS_OWN)]
    assert left == ["/"], left


@pytest.mark.vm
def test_no_device_reached_memory_that_it_may_not(course: Course) -> None:
    assert course.result.status == 0 and not course.result.faults, str(course.result)
