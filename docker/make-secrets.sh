#!/usr/bin/env bash
# Makes the files that docker-compose.yml hands out as secrets, with random passwords, once.
# The containers' users read them, nobody else on this machine: only the owner may enter the folder.
set -euo pipefail
cd "$(dirname "$0")/.."

random() { od -An -N24 -tx1 /dev/urandom | tr -d ' \n'; }

if [[ -e secrets ]]; then
    echo "secrets/ is there already"
    exit 0
fi
umask 022
mkdir --mode=700 secrets
password=$(random)
printf '%s' "$password" >secrets/redis_password
printf 'redis://:%s@redis:6379/0' "$password" >secrets/redis_url
printf 'longcat' >secrets/s3_access_key_id
random >secrets/s3_secret_access_key
random >secrets/api_key
random >secrets/grafana_password
echo "made secrets/"
