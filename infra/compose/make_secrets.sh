#!/bin/sh
# Write a random secret to each file that compose.yaml names, where there is none yet.
# The folder is closed to others; the files are readable in it because containers run as a user of their own.
set -eu
folder=$(dirname "$0")/secrets
mkdir -p "$folder"
chmod 700 "$folder"
for name in ray_token search_token database_password grafana_password; do
    if [ ! -s "$folder/$name" ]; then
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$folder/$name.new"
        chmod 444 "$folder/$name.new"
        mv "$folder/$name.new" "$folder/$name"
        echo "wrote $folder/$name"
    fi
done
