#!/bin/sh
# Puts together the root file system of the image: image-root.sh BINARY FOLDER. Runs in the Dockerfile, on Debian.
set -eu
binary=$1
root=$2

mkdir -p "$root/usr/local/bin" "$root/etc/ssl/certs"
# Names of functions stay, for backtraces; lines go, which are three quarters of the file.
strip --strip-debug -o "$root/usr/local/bin/tollgate" "$binary"
chmod 755 "$root/usr/local/bin/tollgate"

# "libc.so.6 => /lib/.../libc.so.6 (0x...)" and "/lib64/ld-linux-x86-64.so.2 (0x...)"
for library in $(ldd "$binary" | grep -o '/[^ ]*'); do
  cp -L --parents "$library" "$root"
done

cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
echo 'tollgate:x:65532:65532:tollgate:/:/usr/sbin/nologin' > "$root/etc/passwd"
echo 'tollgate:x:65532:' > "$root/etc/group"
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"

# So that scanners know what is in here, and whose it is.
cp -L /etc/os-release "$root/etc/"
for package in libc6 libgcc-s1 ca-certificates; do
  mkdir -p "$root/var/lib/dpkg/status.d" "$root/usr/share/doc/$package"
  dpkg -s "$package" > "$root/var/lib/dpkg/status.d/$package"
  cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
done
