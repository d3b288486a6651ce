#!/usr/bin/env bash
# Makes the files that docker-compose.yml hands out as secrets, with random passwords; those that exist are kept.
# The containers' users read them, nobody else on this machine: only the owner may enter the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }
make() { [[ -e secrets/$1 ]] || printf '%s' "$2" >"secrets/$1"; }

umask 022
mkdir --parents --mode=700 secrets
make redis_password "$(random)"
make redis_url "redis://:$(cat secrets/redis_password)@redis:6379/0"
make s3_root_user root
make s3_root_password "$(random)"
make s3_access_key_id longcat
make s3_secret_access_key "$(random)"
make api_key "$(random)"
make grafana_password "$(random)"
echo "secrets/ is complete"
