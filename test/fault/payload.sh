# A payload of the fault suite. Arguments: what it is to do (test/fault/work.ts, Kind) and seconds to sleep. Its ledger is
# one line at the start and one at the end, appended to $LEDGER/events: outside every folder of the product. Nearly all
# of it is done by the shell itself, because thousands of them run on two processors.
kind=$1 rest=$2
say() { echo "$1 $INDRAFT_ATTEMPT $2 $3" >>"$LEDGER/events"; }
say start $$ "$INDRAFT_NODE"
case $kind in
once)
  met=$LEDGER/met/$INDRAFT_CAMPAIGN_ID.$INDRAFT_STEP.$INDRAFT_INDEX
  if [ ! -e "$met" ]; then
    : >"$met"
    say fail 3
    exit 3
  fi
  ;;
log)
  line=0
  while [ $line -lt 1500 ]; do
    echo "$INDRAFT_ATTEMPT line $line of a log that is worth its name, with some words to fill it"
    line=$((line + 1))
  done
  ;;
esac
[ "$rest" = 0 ] || sleep "$rest"
if [ "$kind" = always ]; then
  say fail 4
  exit 4
fi
value=$(((INDRAFT_INDEX * 7919 + SEED) % 1000003))
# On a full disk it fails, as a payload should.
broken() { say fail 6; exit 6; }
{
  echo "$INDRAFT_STEP $INDRAFT_INDEX $value $INDRAFT_ATTEMPT" || broken
  if [ "$kind" = second ]; then
    while read -r part; do
      read -r line <"$part" || { say fail 5; exit 5; }
      echo "$line" || broken
    done <list.txt
  fi
} >out.txt || broken
say done "$value"
