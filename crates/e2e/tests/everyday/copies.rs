//! `sampan cp`, both ways.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

use anyhow::{Result, ensure};
use sampan_e2e::service::Service;

pub(crate) fn trees_are_copied_in_and_out(service: &Service) -> Result<()> {
    service.background("copied", "sleep 1000")?;
    service.inside("copied", "mkdir -p /srv/there")?;
    let tree = service.work().join("tree");
    fs::create_dir_all(tree.join("deep/er"))?;
    fs::write(tree.join("deep/er/file"), "content\n")?;
    fs::set_permissions(tree.join("deep/er/file"), fs::Permissions::from_mode(0o750))?;
    symlink("deep/er/file", tree.join("link"))?;
    symlink("/etc/passwd", tree.join("dangling-or-not"))?;
    let cp = |from: &str, to: &str| service.sampan(["cp", from, to]).ok();
    cp("./tree", "copied:/srv")?;
    let listed = service
        .inside("copied", "cd /srv/tree; find . | sort; readlink link; stat -c '%a %u:%g' deep/er/file; cat link")?;
    assert_eq!(
        listed,
        ".\n./dangling-or-not\n./deep\n./deep/er\n./deep/er/file\n./link\ndeep/er/file\n750 0:0\ncontent"
    );
    // To a new name, and only what is in it.
    cp("./tree", "copied:/srv/renamed")?;
    cp("./tree/.", "copied:/srv/there")?;
    assert_eq!(service.inside("copied", "cat /srv/renamed/deep/er/file /srv/there/link")?, "content\ncontent");
    service.inside("copied", "echo more > /srv/tree/new; chown -R 1000:1000 /srv/tree")?;
    cp("copied:/srv/tree", "./back")?;
    let back = service.work().join("back");
    assert_eq!(fs::read_to_string(back.join("new"))?, "more\n");
    assert_eq!(fs::read_link(back.join("link"))?, std::path::Path::new("deep/er/file"));
    let file = fs::metadata(back.join("deep/er/file"))?;
    assert_eq!((file.uid(), file.mode() & 0o777), (0, 0o750));
    cp("copied:/srv/tree/new", ".")?;
    assert_eq!(fs::read_to_string(service.work().join("new"))?, "more\n");
    service.sampan(["cp", "copied:/nowhere", "."]).finish()?.fails_with(1, &["copied:/nowhere", "no such"])?;
    service.remove(["copied"])
}

pub(crate) fn a_link_inside_leads_nowhere_outside(service: &Service) -> Result<()> {
    let secret = service.work().join("only-outside");
    fs::write(&secret, "the host's\n")?;
    service.background("sly", "sleep 1000")?;
    service.inside("sly", &format!("ln -s {} /link; ln -s / /root-link", secret.display()))?;
    fs::write(service.work().join("given"), "given\n")?;
    // The link itself may be copied; never what it would mean out here.
    service.sampan(["cp", "sly:/link/.", "./stolen"]).finish()?;
    let stolen = fs::symlink_metadata(service.work().join("stolen"));
    ensure!(!stolen.is_ok_and(|found| found.is_file()), "a link led out of the instance");
    service.sampan(["cp", "./given", "sly:/root-link/arrived"]).ok()?;
    assert_eq!(service.inside("sly", "cat /arrived")?, "given");
    ensure!(!std::path::Path::new("/arrived").exists(), "a copy landed on the host");
    service.remove(["sly"])
}

pub(crate) fn tar_streams_pass_by_the_dash(service: &Service) -> Result<()> {
    service.background("tarred", "sleep 1000")?;
    service.inside("tarred", "mkdir /out; echo x > /out/y")?;
    let stream = service.sampan(["cp", "tarred:/out", "-"]).finish()?.expect(0)?.output;
    ensure!(stream.len() >= 1024 && stream.len() % 512 == 0, "{} bytes are no tar stream", stream.len());
    service.inside("tarred", "mkdir /in")?;
    service.sampan(["cp", "-", "tarred:/in"]).input(stream).ok()?;
    assert_eq!(service.inside("tarred", "cat /in/out/y")?, "x");
    service.remove(["tarred"])
}
