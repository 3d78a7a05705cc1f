#!/bin/sh
# A Slurm of one node on this machine's loopback, from Debian's slurm-wlm and munge; run as root, nothing is installed.
#   slurm_here.sh start DIR     configures it in DIR and starts munged, slurmctld and slurmd
#   SLURM_CONF=DIR/slurm.conf sinfo
#   slurm_here.sh stop DIR
set -eu
dir=$2
case $1 in
start)
    mkdir -p "$dir/state" "$dir/spool" "$dir/munge"
    host=$(hostname -s)
    [ -e "$dir/munge/key" ] || dd if=/dev/urandom of="$dir/munge/key" bs=1024 count=1 2>/dev/null
    chmod 700 "$dir/munge"; chmod 400 "$dir/munge/key"
    socket=$dir/munge.socket
    munged --force --key-file="$dir/munge/key" --socket="$socket" --pid-file="$dir/munge/pid" \
        --log-file="$dir/munge/log" --seed-file="$dir/munge/seed"
    cat > "$dir/slurm.conf" <<CONF
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
MpiDefault=none
ReturnToService=2
KillWait=5
SlurmctldPort=26817
SlurmdPort=26818
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
    # Read even where nothing uses cgroups; this version has no "disabled".
    printf 'CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n' > "$dir/cgroup.conf"
    export SLURM_CONF="$dir/slurm.conf"
    slurmctld -c
    slurmd
    ;;
stop)
    for file in slurmd.pid slurmctld.pid munge/pid; do
        [ ! -e "$dir/$file" ] || kill "$(cat "$dir/$file")" || true
    done
    ;;
esac
