#!/bin/bash
# Builds the pilot's or the relay's image where no container registry can be reached: from the Debian mirror that this
# machine's apt uses, by debian-root.sh. The same contents as pilot.def and relay.def; the lab runs what this builds.
# The result is an unpacked image folder, which Apptainer runs as it is; with --sif also one SIF file beside it.
#
#   npm run build && deploy/apptainer/build-without-registry.sh pilot|relay FOLDER
#       [--sif FILE] [--program FILE] [--node FILE] [--base FOLDER] [--cache FOLDER]
#
#   --program  the bundled program (one .mjs file); without it the one that `npm run build` left in dist/
#   --node     a Node 22.18 (or newer) executable for Linux; without it the one on PATH
#
# A FOLDER that is there already gets the program and keeps everything else, Node too.
# x86_64 and arm64: the image is of the architecture of the machine that builds it. arm64 has not been tried.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
refuse() { echo "build-without-registry.sh: $2" >&2; exit "$1"; }
image=${1:?pilot or relay}
folder=$(realpath -m "${2:?which folder to build}")
shift 2
node='' program='' sif='' pass=()
while [ $# -gt 0 ]; do
  case $1 in
    --node) node=$2 ;;
    --program) program=$2 ;;
    --sif) sif=$(realpath -m "$2") ;;
    --base | --cache) pass+=("$1" "$2") ;;
    *) refuse 64 "unknown option $1" ;;
  esac
  shift 2
done
case $(uname -m) in
  x86_64 | aarch64) ;;
  *) refuse 64 "no image for $(uname -m), only for x86_64 and arm64" ;;
esac

# The session folder: Apptainer inside this image mounts there, and cannot make it when the image is read-only.
common='mkdir -p /opt/indraft /shared /scratch'
case $image in
  pilot)
    pass+=(--packages 'ca-certificates squashfs-tools squashfuse fuse2fs uidmap procps iproute2' --later-packages apptainer)
    finish="$common; mkdir -p /var/lib/apptainer/mnt/session"
    name=indraft-pilot.mjs words=''
    ;;
  relay)
    pass+=(--packages 'ca-certificates nats-server procps')
    finish=$common
    name=indraft.mjs words=' relay'
    ;;
  *) refuse 64 "$image is neither pilot nor relay" ;;
esac
place=/opt/indraft/$name
program=$(realpath -m "${program:-$here/../../dist/$name}")
[ -f "$program" ] || refuse 66 "there is no $program: npm run build makes it, --program names another"
node=${node:-$(node -p process.execPath 2>/dev/null || true)}
[ -n "$node" ] || refuse 66 'no node on PATH: name one by --node'
[ -f "$node" ] && [ -x "$node" ] || refuse 66 "there is no program $node: --node names a Node 22.18 or newer"

# Apptainer's convention: what `apptainer run IMAGE` starts. Tried here: a Node may want libraries that the image has not.
start="exec /usr/local/bin/node $place$words \"\$@\""
finish="$finish; mkdir -p /.singularity.d; printf '#!/bin/sh\n%s\n' '$start' >/.singularity.d/runscript; chmod 755 /.singularity.d/runscript
  /.singularity.d/runscript --help"
pass+=(--put "$(realpath "$node") /usr/local/bin/node" --put "$program $place")

"$here/debian-root.sh" "$folder" "${pass[@]}" --finish "$finish"
if ! cmp -s "$program" "$folder$place"; then
  install -m 755 "$program" "$folder$place.new"
  mv "$folder$place.new" "$folder$place"
  echo "$folder has the program of now"
fi
if [ -n "$sif" ]; then
  command -v apptainer >/dev/null || refuse 69 '--sif needs apptainer here; the folder is ready'
  apptainer build --force "$sif.building" "$folder" && mv "$sif.building" "$sif"
fi
