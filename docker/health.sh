#!/bin/bash
# Healthy: no Ray runs here, or its raylet answers. A command that ends ends the container itself.
set -uo pipefail

grep -qsx raylet /proc/[0-9]*/comm || exit 0
port="$(cat /tmp/ray/session_latest/dashboard_agent_listen_port_*)" || exit 1
[ "$port" != -1 ] || exit 0 # another Ray on the host's network has the port: nobody to ask
wget --tries=1 --timeout=10 -qO- "http://127.0.0.1:$port/api/local_raylet_healthz" | grep -q success
