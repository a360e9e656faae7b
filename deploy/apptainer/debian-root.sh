#!/bin/bash
# Builds the root folder of a small Debian system from the mirror that this machine's own apt uses: no container
# registry, no address written here. The folder appears whole or not at all (built beside, then renamed), downloads are
# kept between attempts, and nothing stays mounted whatever ends the script. Needs root and Debian; installs debootstrap
# when it is missing. Used by build-without-registry.sh and by the lab's roots.
#
#   debian-root.sh FOLDER [--base FOLDER] [--packages "A B"] [--later-packages "C"] [--put "FILE TARGET"]... [--finish COMMANDS] [--cache FOLDER]
#
#   --base            start from a copy of this folder (made by an earlier call) instead of by debootstrap
#   --later-packages  taken from Debian's sid, one package file each: their dependencies must be met by the suite
#   --put             a file of this machine and where in the root it goes, executable when it is here
#   --finish          shell commands run last, inside the root, as root
#   --cache           where downloaded packages are kept (default: beside FOLDER)
set -euo pipefail

suite=trixie
later_suite=sid
folder=${1:?which folder to build}
shift
base='' packages='' later='' finish='' cache='' put=()
while [ $# -gt 0 ]; do
  case $1 in
    --base) base=$2 ;;
    --packages) packages=$2 ;;
    --later-packages) later=$2 ;;
    --put) put+=("$2") ;;
    --finish) finish=$2 ;;
    --cache) cache=$2 ;;
    *) echo "debian-root.sh: unknown option $1" >&2; exit 64 ;;
  esac
  shift 2
done
folder=$(realpath -m "$folder")
cache=$(realpath -m "${cache:-$(dirname "$folder")/packages}")

say() { printf '[%4ds] %s: %s\n' "$SECONDS" "$(basename "$folder")" "$*"; }

[ -e "$folder" ] && { say 'is there already, and stays as it is'; exit 0; }
[ "$(id -u)" = 0 ] || { echo 'debian-root.sh: only root can build a root folder' >&2; exit 77; }
grep -qsxE 'ID="?debian"?' /etc/os-release || { echo 'debian-root.sh: this machine is not a Debian' >&2; exit 77; }

# A mount namespace of our own: the mounts below end with this script, even when it is killed.
if [ -z "${INDRAFT_ROOT_ISOLATED:-}" ]; then
  again=()
  for file in "${put[@]}"; do again+=(--put "$file"); done
  INDRAFT_ROOT_ISOLATED=1 exec unshare --mount --pid --fork --kill-child --mount-proc -- "$0" "$folder" \
    --base "$base" --packages "$packages" --later-packages "$later" --finish "$finish" --cache "$cache" "${again[@]}"
fi

mkdir -p "$(dirname "$folder")" "$cache/partial"
# One builder at a time: another that wants the same folder waits and then finds it.
exec 9>"$cache.lock"
flock --nonblock 9 || { say "waiting for another builder"; flock 9; }
[ -e "$folder" ] && { say 'was built meanwhile'; exit 0; }

# The address stays the machine's: Debian's own mirror, whichever this machine was given.
mirror=$(apt-get indextargets --format '$(SITE) $(RELEASE) $(REPO_URI)' \
  | awk '$2 !~ /security|updates|backports|proposed/ && $1 ~ /^http/ { print $3; exit }')
[ -n "$mirror" ] || { echo 'debian-root.sh: apt of this machine names no Debian mirror; run apt-get update' >&2; exit 69; }

if [ -z "$base" ] && ! command -v debootstrap >/dev/null; then
  say 'installing debootstrap'
  { apt-get install -qq -y --no-install-recommends debootstrap \
    || { apt-get update -qq && apt-get install -qq -y --no-install-recommends debootstrap; }; } </dev/null >/dev/null
fi

building=$folder.building
rm -rf --one-file-system "$building"
export DEBIAN_FRONTEND=noninteractive LC_ALL=C

if [ -n "$base" ]; then
  say "copying $(basename "$base")"
  cp -a --reflink=auto "$base" "$building"
else
  say "debootstrap of $suite"
  debootstrap --variant=minbase --cache-dir="$cache" "$suite" "$building" "$mirror" >"$cache/debootstrap.log" 2>&1 \
    || { tail -n 20 "$cache/debootstrap.log" >&2; exit 70; }
  printf 'deb %s %s main\n' "$mirror" "$suite" >"$building/etc/apt/sources.list"
  # Packages must not start daemons in here, and documentation only costs space.
  printf '#!/bin/sh\nexit 101\n' >"$building/usr/sbin/policy-rc.d"
  chmod 755 "$building/usr/sbin/policy-rc.d"
  printf 'path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' \
    >"$building/etc/dpkg/dpkg.cfg.d/indraft-small"
  printf 'force-unsafe-io\n' >"$building/etc/dpkg/dpkg.cfg.d/indraft-unsafe-io"
fi

mount -t proc proc "$building/proc"
mount --bind /dev "$building/dev"
mkdir -p "$building/var/cache/apt/archives"
mount --bind "$cache" "$building/var/cache/apt/archives"
cat /etc/resolv.conf >"$building/etc/resolv.conf"
# How this machine reaches its mirror (proxies, dates that are not checked, ...) holds in the root as well.
apt-config dump | grep -E '^Acquire::(Check-|http|https|ForceIPv|Retries)' >"$building/etc/apt/apt.conf.d/00machine" || true
printf 'Binary::apt-get::APT::Keep-Downloaded-Packages "true";\nAPT::Keep-Downloaded-Packages "true";\n' \
  >>"$building/etc/apt/apt.conf.d/00machine"
rm -f "$building/etc/apt/apt.conf.d/docker-clean"
inside() { chroot "$building" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
quietly() { "$@" </dev/null >"$cache/apt.log" 2>&1 || { tail -n 20 "$cache/apt.log" >&2; exit 70; }; }

if [ -n "$packages" ]; then
  say "installing $packages"
  [ -n "$(ls "$building/var/lib/apt/lists" | grep _Packages)" ] || quietly inside apt-get -qq update
  # shellcheck disable=SC2086
  quietly inside apt-get -qq -y install --no-install-recommends $packages
fi
if [ -n "$later" ]; then
  say "installing $later of $later_suite"
  mkdir -p "$building/root/later/lists/partial"
  printf 'deb %s %s main\n' "$mirror" "$later_suite" >"$building/root/later/sources.list"
  # Lists of its own, so that nothing else can come from the later suite.
  later_apt="apt-get -qq -o Dir::Etc::sourcelist=/root/later/sources.list -o Dir::Etc::sourceparts=/dev/null
    -o Dir::State::Lists=/root/later/lists -o APT::Sandbox::User=root"
  quietly inside sh -c "cd /root/later && $(tr '\n' ' ' <<<"$later_apt") update && $(tr '\n' ' ' <<<"$later_apt") download $later"
  quietly inside sh -c 'apt-get -qq -y install --no-install-recommends /root/later/*.deb'
  rm -rf "$building/root/later"
fi
for file in "${put[@]}"; do
  read -r source target <<<"$file"
  install -D "$source" "$building$target" -m "$([ -x "$source" ] && echo 755 || echo 644)"
done
if [ -n "$finish" ]; then
  say 'finishing'
  quietly inside sh -euc "$finish"
fi

umount "$building/var/cache/apt/archives" "$building/dev" "$building/proc"
rm -f "$building/etc/apt/apt.conf.d/00machine"
# Left empty, not absent: Apptainer wants to put the host's file over it.
: >"$building/etc/resolv.conf"
# A base keeps its package lists for those who start from it; what starts from a base is an end product.
[ -z "$base" ] || rm -rf "$building"/var/lib/apt/lists/* "$building"/var/cache/apt/*.bin "$building"/var/log/*.log "$building"/var/log/apt/*
rm -rf "$building"/tmp/*
mv "$building" "$folder"
say "ready ($(du -sh "$folder" | cut -f1))"
