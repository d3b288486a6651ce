#!/bin/sh
# Makes the bucket and the user of the service, who has rights on this bucket alone. Can be run again.
set -eu

mc alias set store "$S3_URL" "$(cat "$S3_ROOT_USER_FILE")" "$(cat "$S3_ROOT_PASSWORD_FILE")"
mc mb --ignore-existing store/longcat
user=$(cat "$S3_ACCESS_KEY_ID_FILE")
mc admin user add store "$user" "$(cat "$S3_SECRET_ACCESS_KEY_FILE")"
mc admin policy create store longcat /s3-policy.json
mc admin policy detach store longcat --user "$user" || true # attaching twice is an error
mc admin policy attach store longcat --user "$user"
