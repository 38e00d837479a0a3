"Files and folders of own cases: odd headers, headers without energies, discs, pages of cesm_app."
import asyncio
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import pytest

from cesm_nb.imaging.breast import mask_wall
from cesm_nb.imaging.decode import decode_image
from cesm_nb.imaging.dicom import Upload, read_case, read_view
from cesm_nb.io.tables import read_table

FREE = 'MUELLER' # header text that could be the name of a patient


def make_dicom(n=64, **tags):
    "Bytes of a made-up mammogram, left CC, with some attributes set or, if None, removed."
    pydicom = pytest.importorskip('pydicom', reason='pip install "cesm_nb[dicom]"')
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = '1.2.840.10008.5.1.4.1.1.1.2'
    meta.MediaStorageSOPInstanceUID = '1.2.3.4'
    meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds = pydicom.dataset.FileDataset('x', {}, file_meta=meta, preamble=bytes(128))
    across, down = np.meshgrid(np.linspace(0, 1, n), np.linspace(-1, 1, n))
    pixels = np.clip(4000*(1 - down**2 - across**2), 0, None).astype('<u2')
    known = dict(
        SOPClassUID=meta.MediaStorageSOPClassUID, SOPInstanceUID='1.2.3.4', ViewPosition='CC',
        ImageLaterality='L', ImageType=['DERIVED', 'PRIMARY', '', 'RECOMBINED'], Rows=n, Columns=n,
        SamplesPerPixel=1, PhotometricInterpretation='MONOCHROME2', BitsAllocated=16,
        BitsStored=12, HighBit=11, PixelRepresentation=0, WindowCenter=2000, WindowWidth=4000,
        PixelData=pixels.tobytes())
    for k, v in (known | tags).items():
        if v is not None: setattr(ds, k, v)
    ds['PixelData'].VR = 'OW'
    ds.save_as(out := BytesIO(), enforce_file_format=True)
    return out.getvalue()


def upload(name='a.dcm', **tags): return Upload(name, make_dicom(**tags))


def test_chest_wall_is_found_in_bands_of_any_width():
    "The checks of cases compare wider bands than imaging does; both by one function."
    mask = np.zeros((100, 320), np.uint8)
    mask[:, 8:200] = 1 # beside the outermost 6 columns, inside the outermost 10
    assert mask_wall(mask) == '' and mask_wall(mask, 32) == 'left'
    assert mask_wall(mask[:, ::-1], 32) == 'right'


@pytest.mark.parametrize('tags', [
    dict(WindowCenter=[2000, 3000], WindowWidth=[4000, 3000],
         WindowCenterWidthExplanation=[FREE, 'NORMAL']),
    dict(ImageLaterality=FREE), dict(ViewPosition=FREE), dict(ImageLaterality='R', Laterality=FREE),
    dict(PhotometricInterpretation=FREE), dict(VOILUTFunction=FREE), dict(SOPClassUID='1.2.9.9')
])
def test_free_text_of_a_header_is_not_repeated(tags):
    "A rejection describes header text that no standard defines, instead of quoting it."
    with pytest.raises(ValueError) as e: read_view(upload(**tags), window='3')
    assert FREE not in str(e.value) and '1.2.9.9' not in str(e.value)


def test_each_file_gets_its_own_energy():
    "Options take one value for all files, or one for each, separated by semicolons."
    header = dict(ImageType=['ORIGINAL', 'PRIMARY'])
    files = [upload(f'{k}.dcm', n=n, **header) for k, n in (('x', 64), ('y', 72))]
    with pytest.raises(ValueError, match='--modality; for several files one value each'):
        read_case(files)
    case = read_case(files, modality='DM; cm')
    assert set(case.views) == {('DM', 'CC'), ('CM', 'CC')}
    assert case.views['CM', 'CC'].file == 'y.dcm'
    with pytest.raises(ValueError, match='modality has 3 values separated by ";" and the case 2'):
        read_case(files, modality='DM;CM;CM')


@pytest.mark.parametrize('data, what', [
    (b'', 'empty'), (b'<!DOCTYPE html><html>', 'a web page'), (bytes(60*10**6), 'of zeros'),
    (b'version https://git-lfs.github.com/spec/v1\noid sha256:0', 'a git-lfs pointer'),
    (b'%PDF-1.7', 'a PDF'), (b'\1\2\3', 'neither DICOM nor JPEG nor PNG')
])
def test_other_files_are_named_for_what_they_are(data, what, tmp_path):
    "Neither addresses in memory nor names of parsers are shown; large ones are rejected at once."
    with pytest.raises(ValueError, match=what) as e: read_view(Upload('a.dcm', data))
    assert '0x' not in str(e.value)
    with pytest.raises(ValueError, match=what.replace('DICOM nor ', '')) as e: decode_image(data)
    assert '0x' not in str(e.value)
    if what.startswith('neither'): return
    for suffix in ('.csv', '.xlsx'):
        (path := tmp_path/f'sheet{suffix}').write_bytes(data[:10**4])
        with pytest.raises(ValueError, match=f'sheet{suffix} is .*{what}'):
            read_table(path, ('case', ))


def test_cut_off_and_padded_dicom_files():
    "A download that ends in its header is called cut off, whatever it ends in."
    data = make_dicom()
    for end in (140, 200, 300, 420):
        with pytest.raises(ValueError, match='cut off'): read_view(Upload('a.dcm', data[:end]))
    start = data.index(b'\x08\0\x08\0') # of the data set
    padded = data[:start] + bytes(10**7)
    with pytest.raises(ValueError, match='cut off|neither DICOM'):
        read_view(Upload('a.dcm', padded))


@pytest.mark.parametrize('key', ['WindowCenter', 'RescaleSlope', 'PixelSpacing'])
def test_decimal_commas_name_their_attribute(key):
    "A number with a comma is rejected with the keyword of its attribute."
    values = dict(WindowCenter='2000.50', RescaleSlope='1.50', PixelSpacing=['0.50', '0.50'])
    tags = {key: values[key]}
    if key == 'RescaleSlope': tags['RescaleIntercept'] = 0
    data = make_dicom(**tags).replace(b'.50', b',50')
    with pytest.raises(ValueError, match=f'{key} is expected to .* decimal comma'):
        read_view(Upload('a.dcm', data))


def test_compressions_without_a_decoder_are_named(monkeypatch):
    "The transfer syntax is named if no installed decoder reads it."
    pydicom = pytest.importorskip('pydicom')
    from cesm_nb.imaging import dicom
    ds = pydicom.dcmread(BytesIO(make_dicom()))
    ds.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    def absent(data): raise RuntimeError('missing dependencies')
    monkeypatch.setattr(dicom, '_decode_apart', absent)
    with pytest.raises(ValueError, match='a.dcm is compressed by High-Throughput JPEG 2000'):
        dicom._stored(ds, b'', 'a.dcm')


def make_disc(folder):
    "Lay out a hospital's disc: a directory, a viewer, and two images at the lowest level."
    series = folder/'PT0'/'ST0'/'SE0'
    for name in ('__MACOSX', '@eaDir', 'VIEWER'): (folder/name).mkdir(parents=True)
    series.mkdir(parents=True)
    (folder/'@eaDir'/'thumb.jpg').write_bytes(b'\xff\xd8')
    (folder/'VIEWER'/'viewer.exe').write_bytes(b'MZ')
    contents = make_dicom().replace(b'1.2.840.10008.5.1.4.1.1.1.2', b'1.2.840.10008.1.3.10')
    for place in (folder, series): (place/'DICOMDIR').write_bytes(contents)
    (series/'VERSION').write_text('x')
    (series/'._IM0').write_bytes(b'')
    images = [series/'IM0', series/'1.2.840.113']
    for k, path in enumerate(images): path.write_bytes(make_dicom(n=64 + k))
    return sorted(images)


def test_images_of_a_disc_are_found(tmp_path, capsys):
    "Folders of any depth are searched; what is no image, and folders of systems, are passed over."
    from cesm_nb.cases.predict import list_cases
    images = make_disc(disc := tmp_path/'disc')
    assert list_cases([disc]) == [(images, {})]
    assert '1 of 2 folders hold no image' in capsys.readouterr().out
    series = images[0].parent
    assert list_cases([series]) == [(images, {})]
    (series/'copies').mkdir()
    (series/'copies'/'a.dcm').write_bytes(b'broken') # a case of its own, with a reason
    (series/'copies'/'gone.dcm').symlink_to('nowhere')
    assert [len(files) for files, _ in list_cases([series])] == [2, 1]
    named = list_cases([disc, series/'copies'], folder_names=True)
    assert [o['name'] for _, o in named] == ['copies', 'PT0']
    (empty := tmp_path/'empty').mkdir()
    with pytest.raises(ValueError, match='no DICOM, JPEG or PNG file there'): list_cases([empty])


def test_queue_rejects_with_a_sentence():
    "A few forms are in memory at a time, others wait, and too many are rejected."
    from cesm_nb.cases import web
    most = []

    async def serve():
        queue, inside = web._Queue(), []

        async def one():
            async with queue:
                inside.append(1)
                most.append(len(inside))
                await asyncio.sleep(0)
                inside.pop()

        rest = await asyncio.gather(*[one() for _ in range(web.LIMIT_WAITING + 3)],
                                    return_exceptions=True)
        return [e for e in rest if e], queue

    rejected, queue = asyncio.run(serve())
    assert max(most) <= web.AT_ONCE and queue.n == 0 and len(rejected) == 3
    assert all(isinstance(e, web.Rejected) and e.args[0] == 503 for e in rejected)


@pytest.mark.parametrize('modality, views, expected', [
    ('DM+CM', 'both', {'CC low energy': 0, 'MLO low energy': 1, 'CC subtracted': 2,
                       'MLO subtracted': 3}),
    ('DM+CM', 'MLO', {'MLO low energy': 1, 'MLO subtracted': 3}),
    ('CM', 'both', {'CC': 0, 'MLO': 1})
])
def test_each_view_of_two_energies_has_its_channel(modality, views, expected):
    "Subgroups and costs of a run of both energies: names of channels and their positions agree."
    import torch
    from cesm_nb.cases.subgroups import _have, _places, hide_input
    from cesm_nb.training.dataset import Breasts
    member = SimpleNamespace(
        preparation=dict(tensors=dict(modality=modality), age_years=50., density=.5),
        net=SimpleNamespace(settings=dict(views=views, metadata=False)))
    assert _places(member) == expected
    n = 4 if '+' in modality else 2
    batch = Breasts(torch.ones(1, n, 8, 8), torch.ones(1, 2), torch.ones(1, n, dtype=torch.bool),
                    torch.zeros(1))
    own = SimpleNamespace(table=[None], batch=batch)
    for name, i in expected.items():
        hidden = hide_input(member, batch, name)
        assert not hidden.views[:, i].any() and (~hidden.real).nonzero().tolist() == [[0, i]]
        assert _have(own, member)[name].tolist() == [True]


def test_stalled_forms_are_given_up(monkeypatch):
    "Half of a form does not hold the queue."
    pytest.importorskip('starlette')
    from starlette.requests import Request
    from cesm_nb.cases import web
    monkeypatch.setattr(web, 'QUIET_S', .05)
    part = b'--x\r\nContent-Disposition: form-data; name="name"\r\n\r\nhal'
    sent = [dict(type='http.request', body=part, more_body=True)]

    async def receive():
        return sent.pop() if sent else await asyncio.get_running_loop().create_future()

    form = Request(dict(type='http', method='POST', headers=[
        (b'content-type', b'multipart/form-data; boundary=x')]), receive)
    with pytest.raises(web.Rejected, match='Nothing came for') as e:
        asyncio.run(asyncio.wait_for(web.read_form(form), 60))
    assert e.value.args[0] == 408


def test_stalled_headers_are_given_up(monkeypatch):
    "A connection with half of a request's headers, be it the first or a later one, is closed."
    uvicorn = pytest.importorskip('uvicorn')
    from cesm_nb.cases import web
    monkeypatch.setattr(web, 'QUIET_S', .05)

    async def app(scope, receive, send):
        await send(dict(type='http.response.start', status=204, headers=[]))
        await send(dict(type='http.response.body', body=b''))

    async def serve():
        config = web.make_server(app).config
        config.lifespan = 'off'
        config.load()
        state = uvicorn.server.ServerState()
        make = lambda: config.http_protocol_class(config, state, {})
        server = await asyncio.get_running_loop().create_server(make, '127.0.0.1', 0)
        address = server.sockets[0].getsockname()
        predictions = []
        for head in (b'', b'GET / HTTP/1.1\r\nHo', b'GET / HTTP/1.1\r\nHost: a\r\n\r\nGET'):
            reader, writer = await asyncio.open_connection(*address)
            writer.write(head)
            predictions.append((await asyncio.wait_for(reader.read(), 60))[:12])
            writer.close()
        server.close()
        return predictions

    assert asyncio.run(serve()) == [b'', b'', b'HTTP/1.1 204']
