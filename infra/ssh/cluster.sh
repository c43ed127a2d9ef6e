#!/bin/bash
# A Ray cluster of machines that are reached by ssh: one name a line in HOSTS, the first is the head. docs/deploy/ssh.md
#   infra/ssh/cluster.sh up HOSTS      start Ray on all of them; again where it runs: nothing happens
#   infra/ssh/cluster.sh status HOSTS  which of them run it
#   infra/ssh/cluster.sh down HOSTS    end it, workers first
# LATENTBITS_BIN: the folder there that holds ray and latentbits; default ~/latentbits/.venv/bin
set -euo pipefail
umask 077

usage() {
    echo "usage: $0 up|status|down HOSTS   (a file with one host a line, the first is the head)" >&2
    exit 2
}
[ $# -eq 2 ] && [ -r "$2" ] || usage
mapfile -t hosts < <(sed -e 's/#.*//' -e 's/[[:space:]]//g' -e '/^$/d' "$2")
[ "${#hosts[@]}" -gt 0 ] || usage

bin=${LATENTBITS_BIN:-\~/latentbits/.venv/bin}
folder=${LATENTBITS_FOLDER:-\~/.latentbits}
port=${RAY_PORT:-6379}
dashboard=${DASHBOARD_PORT:-8265}
token=${RAY_AUTH_TOKEN_PATH:-$HOME/.latentbits/ray_token}

there() { # run a script on a host; what it reads comes from here
    ssh -o BatchMode=yes -o ConnectTimeout=10 "$1" "bash -c $(printf '%q' "$2")"
}

start() { # start Ray on a host with these options, unless it runs there; it goes on when this script is over
    local host=$1 options=$2
    there "$host" "umask 077; mkdir -p $folder && cat > $folder/ray_token" < "$token"
    there "$host" "
        if [ -s $folder/ray.pid ] && kill -0 \$(cat $folder/ray.pid) 2> /dev/null; then echo '$host: runs already'; exit; fi
        export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/ray_token RAY_USAGE_STATS_ENABLED=0 PATH=$bin:\$PATH
        command -v ray > /dev/null || { echo '$host: no ray in $bin; set LATENTBITS_BIN' >&2; exit 1; }
        setsid nohup ray start --block $options > $folder/ray.log 2>&1 < /dev/null &
        echo \$! > $folder/ray.pid
        echo '$host: started'
    " < /dev/null
}

up() {
    if [ ! -s "$token" ]; then
        mkdir -p "$(dirname "$token")"
        od -An -N32 -tx1 /dev/urandom | tr -d ' \n' > "$token"
    fi
    local address
    address=${HEAD_ADDRESS:-$(there "${hosts[0]}" "hostname -I" < /dev/null | awk '{print $1}')}
    start "${hosts[0]}" "--head --node-ip-address=$address --port=$port --dashboard-host=127.0.0.1 --dashboard-port=$dashboard ${HEAD_OPTIONS:-}"
    for _ in $(seq 60); do
        there "${hosts[0]}" "PATH=$bin:\$PATH RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/ray_token ray health-check --address $address:$port" \
            < /dev/null > /dev/null 2>&1 && break
        sleep 1
    done
    for host in "${hosts[@]:1}"; do
        start "$host" "--address=$address:$port ${WORKER_OPTIONS:-}"
    done
    echo
    echo "ssh -N -L $dashboard:127.0.0.1:$dashboard ${hosts[0]} &"
    echo "export RAY_AUTH_TOKEN_PATH=$token RAY_API_SERVER_ADDRESS=http://127.0.0.1:$dashboard"
    echo "latentbits submit CONFIG --wait"
}

status() {
    for host in "${hosts[@]}"; do
        there "$host" "if [ -s $folder/ray.pid ] && kill -0 \$(cat $folder/ray.pid) 2> /dev/null; then echo '$host: runs'; else echo '$host: does not run'; fi" \
            < /dev/null || echo "$host: cannot be reached"
    done
}

down() {
    for ((at = ${#hosts[@]} - 1; at >= 0; at--)); do
        there "${hosts[at]}" "
            [ -s $folder/ray.pid ] || { echo '${hosts[at]}: does not run'; exit; }
            kill \$(cat $folder/ray.pid) 2> /dev/null
            for _ in \$(seq 60); do kill -0 \$(cat $folder/ray.pid) 2> /dev/null || break; sleep 1; done
            rm -f $folder/ray.pid
            echo '${hosts[at]}: ended'
        " < /dev/null
    done
}

case $1 in
    up | status | down) "$1" ;;
    *) usage ;;
esac
