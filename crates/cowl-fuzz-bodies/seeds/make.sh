#!/bin/sh
# Makes the seeds with qemu-img and qemu-io 10: small valid images, one for each feature.
# They are committed; run this only to add one.
set -eu
cd "$(dirname "$0")"
rm -f ./*.seed base.img data.raw

new() { name=$1 options=$2 size=$3; shift 3; qemu-img create -q -f qcow2 -o "$options" "$@" "$name.seed" "$size"; }
io() { name=$1; shift; for command; do qemu-io -f qcow2 -c "$command" "$name.seed" >/dev/null; done; }

new v2 compat=0.10,cluster_size=512 48k
io v2 'write -P 0x11 0 1536' 'write -P 0x12 4096 700' 'write -P 0x13 40000 2000'

new v3 cluster_size=512,refcount_bits=8 50688
io v3 'write -P 0x21 0 3072' 'write -z 512 512' 'write -z -u 2048 512' 'write -P 0x22 33000 900'

new subclusters extended_l2=on,cluster_size=16k 80k
io subclusters 'write -P 0x31 512 1024' 'write -P 0x32 16384 16384' 'write -z 18432 1024' \
    'write -z 49152 2048'

for kind in zlib zstd; do
    new $kind cluster_size=4k,compression_type=$kind 40k
    io $kind 'write -c -P 0x41 0 4k' 'write -c -P 0x42 4k 4k' 'write -P 0x43 8k 4k' \
        'write -c -P 0x44 16k 4k'
done

new snapshots cluster_size=1k 64k
io snapshots 'write -P 0x61 0 4k'
qemu-img snapshot -c first snapshots.seed
io snapshots 'write -P 0x62 2k 1k' 'write -P 0x63 20k 1k'
qemu-img snapshot -c second snapshots.seed
io snapshots 'write -P 0x64 0 512'

new bitmaps cluster_size=1k 256k
qemu-img bitmap --add -g 512 bitmaps.seed one
qemu-img bitmap --add -g 4096 bitmaps.seed two
io bitmaps 'write -P 0x71 4k 4k' 'write -P 0x72 200k 1k'

truncate -s 40k base.img
new overlay cluster_size=512 40k -b base.img -F raw
io overlay 'write -P 0x81 0 512' 'write -z 1024 1024'
rm base.img

new wide-refcounts cluster_size=512,refcount_bits=64 16k
io wide-refcounts 'write -P 0x91 0 2k'

new narrow-refcounts cluster_size=512,refcount_bits=1 16k
io narrow-refcounts 'write -P 0xb1 0 2k'

new data-file cluster_size=1k,data_file=data.raw,data_file_raw=on 8k
io data-file 'write -P 0xa1 0 2k'
rm data.raw

# The key material is 2 MB of noise that cowl does not read: the header and the tables are enough.
qemu-img create -q -f qcow2 --object secret,id=s,data=x \
    -o encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10,cluster_size=4k luks.seed 16k
truncate -s 20k luks.seed
