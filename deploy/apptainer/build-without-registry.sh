#!/bin/bash
# Builds the pilot's or the relay's image where no container registry can be reached: from the Debian mirror that this
# machine's apt uses, by debian-root.sh. The same contents as pilot.def and relay.def; the lab runs what this builds.
# The result is an unpacked image folder, which Apptainer runs as it is; with --sif also one SIF file beside it.
#
#   build-without-registry.sh pilot|relay FOLDER [--node FILE] [--program FILE] [--sif FILE] [--base FOLDER] [--cache FOLDER]
#
#   --node     a Node 22 (or newer) executable for Linux, put at /usr/local/bin/node
#   --program  the bundled program (one .mjs file), put under /opt/indraft; without it bind a folder there
#
# x86_64 and arm64: the image is of the architecture of the machine that builds it. arm64 has not been tried.
set -euo pipefail

image=${1:?pilot or relay}
folder=$(realpath -m "${2:?which folder to build}")
shift 2
node='' program='' sif='' pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --node) node=$(realpath "$2") ;;
    --program) program=$(realpath "$2") ;;
    --sif) sif=$(realpath -m "$2") ;;
    --base | --cache) pass+=("$1" "$2") ;;
    *) echo "build-without-registry.sh: unknown option $1" >&2; exit 64 ;;
  esac
  shift 2
done
case $(uname -m) in
  x86_64 | aarch64) ;;
  *) echo "build-without-registry.sh: no image for $(uname -m), only for x86_64 and arm64" >&2; exit 64 ;;
esac

# The session folder: Apptainer inside this image mounts there, and cannot make it when the image is read-only.
common='mkdir -p /opt/indraft /shared /scratch'
case $image in
  pilot)
    pass+=(--packages 'ca-certificates squashfs-tools squashfuse fuse2fs uidmap procps' --later-packages apptainer)
    finish="$common; mkdir -p /var/lib/apptainer/mnt/session"
    start='exec /usr/local/bin/node /opt/indraft/indraft-pilot.mjs "$@"'
    ;;
  relay)
    pass+=(--packages 'ca-certificates nats-server procps')
    finish=$common
    start='exec /usr/local/bin/node /opt/indraft/indraft.mjs relay "$@"'
    ;;
  *) echo "build-without-registry.sh: $image is neither pilot nor relay" >&2; exit 64 ;;
esac
# Apptainer's convention: what `apptainer run IMAGE` starts.
finish="$finish; mkdir -p /.singularity.d; printf '#!/bin/sh\n%s\n' '$start' >/.singularity.d/runscript; chmod 755 /.singularity.d/runscript"

[ -z "$node" ] || pass+=(--put "$node /usr/local/bin/node")
[ -z "$program" ] || pass+=(--put "$program /opt/indraft/$(basename "$program")")

"$(dirname "$0")/debian-root.sh" "$folder" "${pass[@]}" --finish "$finish"
if [ -n "$sif" ]; then
  command -v apptainer >/dev/null || { echo 'build-without-registry.sh: --sif needs apptainer here; the folder is ready' >&2; exit 69; }
  apptainer build "$sif.building" "$folder" && mv "$sif.building" "$sif"
fi
