"""A stand-in for the worker's image, so that tests choose how a pod ends: it quantizes nothing.

It does what the variables of `spec.pod.env` say, in real pods with real limits and exit codes. It
also ends with 97, 98 or 99 where a worker's pod would have more than it should.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.testbed.scratch import compiled_c, scratch_image

if TYPE_CHECKING:
    from pathlib import Path

ACTOR = r"""
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* As the worker does: told to stop, it says so by its exit code. */
static void interrupted(int number) { (void)number; _exit(30); }

static const char *asked(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

int main(void) {
    struct sigaction ending = {.sa_handler = interrupted};
    if (!*asked("ACT_STUBBORN")) sigaction(SIGTERM, &ending, 0);
    if (access("/var/run/secrets/kubernetes.io/serviceaccount/token", F_OK) == 0) return 99;
    if (open("/written", O_CREAT | O_WRONLY, 0600) >= 0) return 98;
    if (getuid() == 0) return 97;
    if (!*asked("KUBEQUANT_RUN")) return 96;
    const char *line = asked("ACT_PRINT");
    if (*line) { puts(line); fflush(stdout); }
    const char *file = asked("ACT_SHOW_FILE");
    if (*file) {
        char text[256] = {0};
        int from = open(file, O_RDONLY);
        if (from < 0) return 95;
        ssize_t size = read(from, text, sizeof text - 1);
        if (size > 0) { puts(text); fflush(stdout); }
    }
    long megabytes = atol(asked("ACT_MEGABYTES"));
    for (long one = 0; one < megabytes; one++) memset(malloc(1 << 20), 1, 1 << 20);
    usleep((useconds_t)(atof(asked("ACT_SECONDS")) * 1e6));
    const char *message = asked("ACT_MESSAGE");
    if (*message) {
        FILE *log = fopen("/dev/termination-log", "w");
        if (log) { fputs(message, log); fclose(log); }
    }
    return atoi(asked("ACT_EXIT"));
}
"""


def push_actor(registry: str, folder: Path) -> str:
    """Push the image to a registry and return its name."""
    return scratch_image(compiled_c(folder, "actor", ACTOR)).push(registry, "actor")
