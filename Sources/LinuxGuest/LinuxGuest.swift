// LinuxGuest
