"""What a worker tells whoever keeps its mount: that it may be gone on with, or that it ends.

``{"held": NAME, "pid": PID, "start": TIME, "mount_point": PATH, "kind": KIND, "init": …,
"answer": …}`` with ``/dev/fuse`` attached: the process, when it began (`start_time_of`), where the
mount is, who takes the writes (`writes.kinds`), the kernel's FUSE_INIT and its answer in hex.
``{"let_go": NAME}``: it has ended.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
from dataclasses import dataclass
from typing import Any

from artifactfs.daemon.host import mounts
from artifactfs.features import Features
from artifactfs.fs.kernel.handover import Handover, Held
from artifactfs.system.descriptors import attached
from artifactfs.system.processes import start_time_of

LEAVE = signal.SIGUSR1
"""Has a worker end and leave its mount to the next one."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Outliving:
    """Of one mount. `handover` is the session's side of it."""

    name: str
    keeper: socket.socket
    handover: Handover
    told: bool = False

    @classmethod
    def of(
        cls, name: str, spec: dict[str, Any] | None, descriptors: list[int], keeper: socket.socket
    ) -> Outliving:
        """`spec` and `descriptors`: of a mount that is to be taken over."""
        held = None
        if spec is not None:
            init, answer = bytes.fromhex(spec["init"]), bytes.fromhex(spec["answer"])
            held = Held(descriptors[0], init, answer)
        handover = Handover.of(held, mounts.detach)
        handover.leaves = handover.taken_over
        return cls(name, keeper, handover, told=handover.taken_over)

    @property
    def taken_over(self) -> bool:
        return self.handover.taken_over

    @property
    def is_kept(self) -> bool:
        """Whether somebody keeps the mount, for a process after this one."""
        return self.handover.leaves

    def tell(self, features: Features, mount_point: str, *, native: bool) -> None:
        """The mount is whole: another process can go on with it from now on, where it may."""
        held = self.handover.held
        if held is None or not (native or features.on("handover-writes")):
            self.handover.leaves = False
            self.let_go()
            return
        if self.told:
            return
        message = {
            "held": self.name,
            "pid": os.getpid(),
            "start": start_time_of(os.getpid()),
            "mount_point": mount_point,
            "kind": "kernel" if native else "fuse",
            "init": held.init.hex(),
            "answer": held.answer.hex(),
        }
        self.told = self._send(message, held.descriptor)
        self.handover.leaves = self.told

    def end(self) -> None:
        """The mount ends with this process."""
        self.handover.leaves = False

    def let_go(self) -> None:
        """It has ended. Who still has a file of it open is told so when nobody keeps it."""
        if self.told and not self.handover.leaves:
            self.told = False
            self._send({"let_go": self.name})

    def _send(self, message: dict[str, Any], *carried: int) -> bool:
        try:
            self.keeper.sendmsg([json.dumps(message).encode()], attached(*carried))
        except OSError as error:
            log.warning("nobody keeps the mount: %s", error)
            return False
        return True
