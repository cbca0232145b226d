# Sourced by the recipes: their options, the clock, and stages that stop when the time is over and go on next time.
# A recipe names its flags in $flags and sets their defaults; `options "$@"` then makes `--a-b 3` the variable a_b.
from=$PWD recipe=$0
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"

fail() { echo "error: $*" >&2; exit 2; }

options() {
    case " $* " in *" --quick "*) quick=1; quick_settings ;; esac # first, so that other flags are heard beside it
    while [ $# -gt 0 ]; do
        case $1 in
            -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$(absolute "$recipe")"; exit 0 ;;
            --quick) shift; continue ;;
            --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
        esac
        [[ $1 = --* && " $flags " = *" ${1#--} "* ]] || fail "$1: unknown flag; --help shows them"
        [ $# -gt 1 ] || fail "$1: needs a value"
        local name=${1#--}
        printf -v "${name//-/_}" '%s' "$2"
        shift 2
    done
    [ -n "$data_path" ] || fail "--data-path DIR is missing: CIFAR-10 in train/ and test/, or where to fetch it to"
    data_path=$(absolute "$data_path")
    out=$(absolute "$out")
    budget=""
    if [ -n "$max_minutes" ]; then
        [[ $max_minutes =~ ^[0-9]*\.?[0-9]+$ ]] || fail "--max-minutes $max_minutes: must be a number"
        budget=$(awk "BEGIN { print int(60 * $max_minutes) }")
    fi
}

on_gpu() { python3 -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; }

absolute() { case $1 in /*) echo "$1" ;; *) echo "$from/$1" ;; esac }

stage() { printf '\n== %s (%d s)\n' "$*" "$SECONDS"; }

# Seconds of --max-minutes that are left; a very long time without it.
left() { echo $((${budget:-99999999} - SECONDS)); }

time_is_over() {
    echo "--max-minutes $max_minutes are over; everything is saved in $out, and the same command goes on."
    exit 0
}

# train FILE RESERVE ENTRY FLAGS...: train until FILE is there, or until RESERVE seconds are left.
train() {
    local finished=$1 reserve=$2
    shift 2
    if [ -e "$finished" ] || [ "$(($(left) - reserve))" -le 0 ]; then return 0; fi
    python3 "$@" --resume ${budget:+--max-minutes "$(awk "BEGIN { print ($(left) - $reserve) / 60 }")"}
}

# bounded COMMAND...: what has no clock of its own but goes on where it stopped; gets Ctrl-C when the time is over.
bounded() {
    [ "$(left)" -gt 0 ] || time_is_over
    if [ -z "$budget" ] || ! command -v timeout > /dev/null; then "$@"; return; fi
    local code=0
    timeout --foreground --signal=INT "$(left)" "$@" || code=$?
    [ "$code" != 124 ] || time_is_over
    return "$code"
}

# The newest checkpoint of a run's folder; nothing where there is none.
newest() {
    local file=""
    for file in "$1"/checkpoints/*.pt; do :; done
    if [ -e "$file" ]; then echo "$file"; fi
}
